"The rivals: autoregressive models, flows, VAEs and GANs, compared under one protocol."
