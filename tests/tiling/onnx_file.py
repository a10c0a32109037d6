"""A tiny ONNX file, written by hand: its output is its input, (1, 3, H, W) for any H and W."""


def identity_onnx() -> bytes:
    """ModelProto: IR version 8, opset 13, a graph of one Identity."""
    node = _text(1, "x") + _text(2, "y") + _text(4, "Identity")
    graph = _part(1, node) + _text(2, "g") + _part(11, _value("x")) + _part(12, _value("y"))
    return _number(1, 8) + _part(7, graph) + _part(8, _text(1, "") + _number(2, 13))


def _value(name: str) -> bytes:
    """ValueInfoProto of floats with the dimensions 1, 3 and two that are free."""
    dims = [_number(1, 1), _number(1, 3), _text(2, "h"), _text(2, "w")]
    shape = b"".join(_part(1, dim) for dim in dims)
    return _text(1, name) + _part(2, _part(1, _number(1, 1) + _part(2, shape)))


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _text(field: int, text: str) -> bytes:
    return _part(field, text.encode())


def _part(field: int, content: bytes) -> bytes:
    assert len(content) < 128, "one byte of length"
    return bytes([field << 3 | 2, len(content)]) + content
