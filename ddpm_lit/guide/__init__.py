"Guidance and edits: functions from a denoiser to a denoiser."
