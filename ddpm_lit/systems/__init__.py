"Whole systems, from diffusion 2015 to latent diffusion; drawing with them, judging them, tuning them."
