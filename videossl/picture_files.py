"""What every `Image.open` is told. Pillow goes by content, whatever a file is called, and hands PostScript to a program."""

from PIL import Image

PICTURE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")  # all are decoded in this process
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # what it raises for a bad file
