"""What a machine needs to become a worker: the script that does it (`script.py`), and the program (`package.py`)."""
