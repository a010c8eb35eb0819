#!/usr/bin/env bash
# What only a GPU can show, in under ten minutes on one of them: the notebooks' GPU cells, a table of speeds, better digits.
#     tools/gpu_check.sh [FOLDER]     results go to FOLDER (default runs/gpu)
# Installs nothing and needs no network: torch, torchvision, matplotlib, safetensors, click, fastprogress of $PYTHON (default python3).
# SHIP=1 puts the new weights into data/weights as well.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu} python=${PYTHON:-python3} failed=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} MPLBACKEND=Agg
command -v "$python" > /dev/null || { echo "There is no $python here: name a Python that has torch with PYTHON=..."; exit 2; }
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null ||
    { echo "PyTorch of $python is missing or sees no GPU: run this on a machine with one, or name another Python with PYTHON=..."; exit 2; }
"$python" -c 'import ddpm_lit.cli, ddpm_lit.show, ddpm_lit.nets.unet, ddpm_lit.train.fit' ||
    { echo "ddpm_lit cannot be imported: the line above names what $python lacks."; exit 2; }
mkdir -p "$out" || exit 2
step() { echo; echo "== $* ($SECONDS s)"; }

step the notebooks\' GPU cells
mapfile -t notebooks < <(grep -lE '"#\| *gpu\\n' nbs/*.ipynb)
if [ ${#notebooks[@]} -eq 0 ]; then echo "no notebook has a cell marked #| gpu"
else timeout 150 "$python" tools/nb.py test --flags gpu --timeout 100 "${notebooks[@]}" || failed=1; fi

step images a second in training
timeout 240 "$python" - "$out/speed.json" <<'PY' || failed=1
import json, statistics, sys, time, torch
from ddpm_lit.nets.unet import ddpm_unet, small_unet

def speed(build, shape, label, bf16, channels_last, compiled, steps=20):
    torch.manual_seed(0); torch.cuda.reset_peak_memory_stats()
    net = build().cuda()
    x, t = torch.randn(shape, device='cuda'), torch.rand(shape[0], device='cuda')
    given = dict(label=torch.zeros(shape[0], dtype=torch.long, device='cuda')) if label else {}
    if channels_last: net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if compiled: net.compile()
    opt, times = torch.optim.AdamW(net.parameters(), fused=True), []
    for i in range(steps + 5):
        torch.cuda.synchronize(); start = time.perf_counter()
        with torch.autocast('cuda', torch.bfloat16, enabled=bf16): loss = (net(x, t, **given) - x).square().mean()
        opt.zero_grad(); loss.backward(); opt.step()
        torch.cuda.synchronize(); times.append(time.perf_counter() - start)
    return shape[0]/statistics.median(times[5:]), torch.cuda.max_memory_allocated()/2**20

ways = {'fp32': (0, 0, 0), 'bf16': (1, 0, 0), 'bf16 channels_last': (1, 1, 0), 'bf16 compile': (1, 0, 1), 'bf16 channels_last compile': (1, 1, 1)}
nets = {'small_unet, 28x28, batch 512': (small_unet, (512, 1, 28, 28), True), 'ddpm_unet, 32x32, batch 128': (ddpm_unet, (128, 3, 32, 32), False)}
rows = []
print(torch.cuda.get_device_name(), 'torch', torch.__version__)
for name, (build, shape, label) in nets.items():
    for way, choice in ways.items():
        try: per_second, mib = speed(build, shape, label, *map(bool, choice))
        except Exception as e: print(f'{name:30s} {way:28s} failed: {str(e).strip().splitlines()[:1]}', flush=True); continue
        rows.append(dict(net=name, way=way, images_per_second=round(per_second), peak_mib=round(mib)))
        print(f'{name:30s} {way:28s} {per_second:9.0f} images/s {mib:7.0f} MiB', flush=True)
json.dump(dict(device=torch.cuda.get_device_name(), torch=torch.__version__, rows=rows), open(sys.argv[1], 'w'), indent=1)
sys.exit(len(rows) < len(nets)*len(ways))
PY

step better digits
# as many steps as three minutes should hold, by the speed just measured; a cosine decay wants to know its end
steps=$("$python" - "$out/speed.json" 2> /dev/null <<'PY'
import json, sys
speeds = [r['images_per_second'] for r in json.load(open(sys.argv[1]))['rows'] if r['net'].startswith('small') and r['way'] == 'bf16']
print(max(1000, min(40000, int(180*.7*speeds[0]/512))))
PY
) || steps=8000
rm -rf "$out/mnist"
timeout -s INT 260 "$python" -m ddpm_lit train mnist --device cuda --batch 512 --steps "$steps" --out "$out/mnist" ${SHIP:+--ship} &&
    timeout 60 "$python" -m ddpm_lit sample "$out/mnist/mnist.safetensors" --device cuda --n 100 --steps 50 --out "$out/digits.png" || failed=1

step done
[ $failed -eq 0 ] && echo "all well: $out/speed.json, $out/digits.png, $out/mnist/mnist.safetensors and its card" || echo "something above failed"
exit $failed
