"""Speed and memory of ConViT beside timm's ConViT and a plain ViT, measured in turn in one run (``comvex bench``)."""
