"""Puts a file into a bucket. Arguments: host and port, key id, secret, bucket, object, file."""

import sys

import boto3

address, key, secret, bucket, name, file = sys.argv[1:]
client = boto3.client(
    "s3",
    endpoint_url=f"http://{address}",
    region_name="us-east-1",
    aws_access_key_id=key,
    aws_secret_access_key=secret,
)
client.upload_file(file, bucket, name)
