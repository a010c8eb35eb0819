"Other people's checkpoints, in and out, bit for bit."
