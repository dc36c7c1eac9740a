"""BLOOM Runtime as one supervised trio daemon. Start reading in `bloomd.daemon`."""

__version__ = "0.1.0"
