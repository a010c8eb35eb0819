"Diffusion itself: schedules, the forward process, posteriors, losses, samplers, scores, solvers, bits."
