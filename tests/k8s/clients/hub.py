"""Has a JupyterHub start a user's server, and a kernel there compute. Prints what that printed.

usage: hub.py HUB TOKEN CODE
"""

import json
import sys
import time
import uuid

import requests
import websocket

hub, token, code = sys.argv[1:]
headers = {"Authorization": f"token {token}"}


def call(method, path, headers=headers, **more):
    answer = requests.request(method, f"http://{hub}{path}", headers=headers, timeout=60, **more)
    answer.raise_for_status()
    return answer


call("POST", "/hub/api/users/alice")
call("POST", "/hub/api/users/alice/server")
while not call("GET", "/hub/api/users/alice").json()["server"]:
    time.sleep(1)
own = call("POST", "/hub/api/users/alice/tokens", json={"note": "client"}).json()["token"]
own_headers = {"Authorization": f"token {own}"}
kernel = call("POST", "/user/alice/api/kernels", headers=own_headers, json={}).json()["id"]
channels = f"ws://{hub}/user/alice/api/kernels/{kernel}/channels"
socket = websocket.create_connection(channels, header=[f"Authorization: token {own}"], timeout=200)
socket.send(json.dumps({
    "header": {
        "msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "alice",
        "session": uuid.uuid4().hex, "version": "5.3",
    },
    "parent_header": {}, "metadata": {}, "channel": "shell",
    "content": {"code": code, "silent": False},
}))
while True:
    message = json.loads(socket.recv())
    if message["msg_type"] == "stream":
        print(message["content"]["text"], end="")
        break
    if message["msg_type"] == "error":
        sys.exit("\n".join(message["content"]["traceback"]))
