"""Reading data sets: COCO-format files, images, splits, image-level labels, transforms and batches."""
