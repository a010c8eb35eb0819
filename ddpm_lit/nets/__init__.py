"Networks: the U-Net, transformers, attention, encoders."
