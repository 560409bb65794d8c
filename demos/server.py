"""The server of explore.py's page: matplotlib's WebAgg, for this machine alone.

Any site can give a name of its own the address 127.0.0.1, and a browser then lets that site use what is served here
(DNS rebinding). So requests for any name but this machine's get status 403. Tornado refuses websockets that pages of
another origin open.

matplotlib closes the connection when it does not understand a message, and some messages that it accepts stop the
pictures for every page. So messages that the page never sends are ignored, and a line is printed for each.
"""

import json

from matplotlib.backends.backend_webagg import WebAggApplication
from tornado.web import ErrorHandler

NAMES = ("127.0.0.1", "localhost")
MOUSE = "button_press button_release dblclick scroll motion_notify figure_enter figure_leave"
KINDS = f"supports_binary send_image_mode set_device_pixel_ratio refresh resize draw toolbar_button {MOUSE}".split()
UNUSED = ("ack", "key_press", "key_release")  # ignored: matplotlib's keys would close (q) or change everybody's figure
RANGES = {  # matplotlib stores these, so they are checked first; other wrong fields raise at once
    "x": (-1e5, 1e5),
    "y": (-1e5, 1e5),
    "width": (100, 6000),
    "height": (100, 6000),
    "device_pixel_ratio": (0.25, 10),
    "value": (1, 1),  # of supports_binary: matplotlib fails if it is false
}
PIXELS = 2**26  # the largest picture; a screen of 7680 x 4320 has half as many pixels


def refuse_strange(content: dict, canvas) -> None:
    """Raise ValueError for a message that the page never sends."""
    if content["type"] not in KINDS:
        raise ValueError(f"type {content['type']!r}")
    for name, (low, high) in RANGES.items():
        if name in content and not low <= content[name] <= high:
            raise ValueError(f"{name} {content[name]!r}")
    width, height = canvas.get_width_height()
    area = content.get("width", width) * content.get("height", height)
    if area * content.get("device_pixel_ratio", canvas.device_pixel_ratio) ** 2 > PIXELS:
        raise ValueError(f"more than {PIXELS} pixels")


class Server(WebAggApplication):
    """WebAgg's application with a check of each request and each message."""

    def find_handler(self, request, **kwargs):
        if request.host_name not in NAMES:
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return super().find_handler(request, **kwargs)

    class WebSocket(WebAggApplication.WebSocket):
        def on_message(self, message):
            try:
                content = json.loads(message)
                if content["type"] not in UNUSED:
                    refuse_strange(content, self.manager.canvas)
                    super().on_message(message)
            except Exception as error:  # tornado would close the connection
                print(f"ignored a message: {error!r:.200}", flush=True)
