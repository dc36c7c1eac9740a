"""The object store: MinIO, or any other S3 server.

`bloomd.objects.store` is imported by those who use one: the SDK takes a seventh of the time in which bloomd starts.
"""
