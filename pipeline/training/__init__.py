"""Training loops in plain PyTorch, one machine, CPU or GPU. Nothing here knows files of images or clusters."""
