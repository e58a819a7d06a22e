"""An S3 server for tests: moto's, with users whose policies let them use what is below a prefix of a bucket.

Arguments: the address to listen at, the bucket, then NAME:PREFIX for each user. Prints one line of JSON: its port and each user's keys.
"""

import json
import signal
import sys

import boto3
from moto import settings
from moto.moto_server.threaded_moto_server import ThreadedMotoServer


def main(address, bucket, *users):
    # Until the users are there, calls are anybody's; from then on signatures and policies hold.
    settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()

    def client(service):
        return boto3.client(
            service,
            endpoint_url=f"http://{address}:{port}",
            region_name="us-east-1",
            aws_access_key_id="nobody",
            aws_secret_access_key="nothing",
        )

    client("s3").create_bucket(Bucket=bucket)
    keys = {name: make_user(client("iam"), name, bucket, prefix) for name, prefix in (user.split(":", 1) for user in users)}
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    print(json.dumps({"port": port, "keys": keys}), flush=True)
    signal.pause()


def make_user(iam, name, bucket, prefix):
    statements = [
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            "Resource": f"arn:aws:s3:::{bucket}/{prefix}*",
        },
        # Some clients ask for the bucket with a slash at its end, which is another name here.
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/"]},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="prefix", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return [key["AccessKeyId"], key["SecretAccessKey"]]


if __name__ == "__main__":
    main(*sys.argv[1:])
