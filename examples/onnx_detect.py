"""Find things with an exported detector: needs numpy, Pillow and onnxruntime, no torch.

usage: python onnx_detect.py model.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

onnxruntime.set_default_logger_severity(3)  # It would warn that the vocabulary may be replaced.
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
rule, names = json.loads(about["preprocessing"]), json.loads(about["names"])

photo = Image.open(sys.argv[2]).convert("RGB")
scale = min(rule["short_side"] / min(photo.size), rule["long_side"] / max(photo.size))
small = photo.resize([max(1, int(side * scale + 0.5)) for side in photo.size], Image.Resampling.BILINEAR)
pixels = np.asarray(small)[None]
inputs = {"images": pixels, "image_sizes": np.array([pixels.shape[1:3]]), "score_threshold": np.float32([0.3])}
# Other names: inputs["vocabulary"] = text embeddings [K, D] float32, and names = what they stand for.
boxes, scores, class_ids, image_ids, *masks = session.run(None, inputs)
boxes *= np.tile(np.array(photo.size) / small.size, 2)
for box, score, class_id in zip(boxes, scores, class_ids, strict=True):
    print(f"{names[class_id]} {score:.2f} {box.round(1).tolist()}")
