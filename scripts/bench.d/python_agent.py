"""The agent that a user would write: paho-mqtt and LiteRT, one callback.

Raw int8 messages with a u64 tag in front come on one topic, JSON results with the tag go out on another. TCP_NODELAY is
set and results are QoS 0, the quickest that this can be.

    python_agent.py PORT MODEL.tflite IN_TOPIC OUT_TOPIC classification|anomaly
"""

import json
import socket
import sys

import numpy as np
import paho.mqtt.client as mqtt
from ai_edge_litert.interpreter import Interpreter

port, model, in_topic, out_topic, task = int(sys.argv[1]), *sys.argv[2:6]

interpreter = Interpreter(model, num_threads=1)
interpreter.allocate_tensors()
source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
shape = source["shape"]
(in_scale, in_zero), (out_scale, out_zero) = source["quantization"], sink["quantization"]


def on_message(client, _, message):
    payload = message.payload
    window = np.frombuffer(payload, np.int8, offset=8)
    interpreter.set_tensor(source["index"], window.reshape(shape))
    interpreter.invoke()
    output = (interpreter.get_tensor(sink["index"])[0].astype(np.float32) - out_zero) * out_scale
    result = {"type": "result", "tag": int.from_bytes(payload[:8], "little")}
    if task == "anomaly":
        error = output - (window.astype(np.float32) - in_zero) * in_scale
        result["score"] = float(np.mean(error * error))
    else:
        best = int(output.argmax())
        result |= {"label": best, "score": float(output[best])}
    client.publish(out_topic, json.dumps(result))


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_socket_open = lambda _client, _data, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
client.on_connect = lambda client, *_: client.subscribe(in_topic)
client.on_message = on_message
client.connect("127.0.0.1", port)
client.loop_forever()
