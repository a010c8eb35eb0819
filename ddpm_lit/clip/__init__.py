"CLIP: tokens, the contrastive loss, questions without training, guidance, judges."
