"""Networks: our own, ResNet, CUBS-ResNet and any timm backbone, each built by name and kept in a model folder."""
