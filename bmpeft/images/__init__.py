"""Images: references that readers make, and the pixels that models read.

    reference = ImageFile(Path("xray.png"))       # nothing is read yet
    pixels = ImageLoader(ImageProcessor(image_size=384)).pixels(reference)     # float32 [3, 384, 384]

Images come from strangers, so that decoding is strict: few formats, limits on size, no metadata kept.
"""

from __future__ import annotations

from bmpeft.images.references import Base64Image, BytesImage, ImageFile, NpzImage

__all__ = ["Base64Image", "BytesImage", "ImageFile", "NpzImage"]
