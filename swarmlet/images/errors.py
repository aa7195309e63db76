"""What goes wrong with images, one class for each thing that a caller can do about it.

Every message is one sentence that a user may read: what, why, what to do.
"""

from __future__ import annotations


class ImageError(Exception):
    """The base: an error of an image, of its content or of where it comes from."""


class BadReference(ImageError, ValueError):
    """The user's name for an image does not follow the grammar."""


class BadManifest(ImageError, ValueError):
    """A manifest, an index or a configuration does not hold what it must; names the path."""


class BadChange(ImageError, ValueError):
    """A `--change` of an import is no instruction that an import may have."""


class BadLayer(ImageError):
    """A layer's tar is broken, is hostile or passes a limit. Nothing of it is used."""


class BadArchive(ImageError):
    """What was given to `load` is no image archive, or not the whole of one."""


class DigestMismatch(ImageError):
    """Bytes are not what their digest promised. They were thrown away."""


class BlobNotFound(ImageError):
    """This node, peer or registry has no such blob. Another one may have it."""


class ImageNotFound(ImageError):
    """No image here answers to the name, the id or the digest."""


class AmbiguousImage(ImageNotFound):
    """More than one image's id begins with what was given."""


class ImageInUse(ImageError):
    """Something still needs the image: a container, or another name."""


class NoPlatform(ImageError):
    """The index has no image for this host's platform."""


class NoSpace(ImageError):
    """The disk would fall below its reserve, or the content is above its limit."""


class RegistryError(ImageError):
    """The registry refused, or did not answer as a registry does."""


class RegistryUnavailable(RegistryError):
    """The registry could not be reached, or was busy for too long. Trying later may help."""


class RegistryDenied(RegistryError):
    """The registry wants (other) credentials for this image."""
