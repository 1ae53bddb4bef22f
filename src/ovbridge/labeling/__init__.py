"""From images to pseudo labels: selection of boxes, crops and their embeddings, the resumable run."""
