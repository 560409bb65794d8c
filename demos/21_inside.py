"""Inside the engine: the graph of an expression with values and gradients, and derivatives of any order. One second.

Every operation on a Tensor that requires grad records an Op, which knows its inputs and its derivative. Together the
Ops are the graph. ``grad`` walks it backward, from the result to the leaves, and adds up the gradients that Ops pass
on. A derivative is made of the same operations, so it has a graph of its own and can be differentiated again.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import Tensor, grad, ops
from tinygen.backend import to_device
from tinygen.tensor import history, keep_values

CONFIG = {"order": (3, "of the highest derivative that is drawn", 1, 6)}


def neuron(device):
    """The loss of one neuron, (tanh(w x + b) - t)^2, and its leaves by name."""
    values = {"w": -1.5, "x": 2.0, "b": 2.0, "t": 0.5}
    leaves = {k: Tensor(to_device(np.array(v), device), requires_grad=True) for k, v in values.items()}
    w, x, b, t = leaves.values()
    with keep_values():  # the picture shows them all
        return (ops.tanh(w * x + b) - t) ** 2, leaves


def nodes_of(y, leaves):
    """Every value of the computation, leaves first: {key: (name, Tensor, keys of its inputs)}."""
    nodes = {id(leaf): (name, leaf, ()) for name, leaf in leaves.items()}
    for op in history([y]):
        for x in op.inputs:
            if x._op is None and id(x) not in nodes:
                nodes[id(x)] = ("constant", x, ())
        inputs = tuple(id(x) if x._op is None else id(x._op) for x in op.inputs)
        nodes[id(op)] = (type(op).__name__, op.output, inputs)
    return nodes


def gradients(y, nodes):
    """{key: dy / d(value)} for all values that require grad."""
    keys = [key for key, (_, tensor, _) in nodes.items() if tensor.requires_grad]
    return {key: g.item() for key, g in zip(keys, grad(y, [nodes[key][1] for key in keys]))}


def dot(nodes, slopes):
    """The graph as text for Graphviz."""
    number = {key: f"n{i}" for i, key in enumerate(nodes)}
    lines = ["digraph {", "  rankdir=LR; node [shape=box, fontname=sans]"]
    for key, (name, tensor, inputs) in nodes.items():
        slope = f"\\ngradient {slopes[key]:.3g}" if key in slopes else ""
        lines.append(f'  {number[key]} [label="{name}\\nvalue {tensor.item():.3g}{slope}"]')
        lines += [f"  {number[i]} -> {number[key]}" for i in inputs]
    return "\n".join([*lines, "}"])


def draw_graph(ax, nodes, slopes):
    """The graph with matplotlib: a value's column is the largest number of operations between it and a leaf."""
    column = {}
    for key, (_, _, inputs) in nodes.items():  # inputs come before what is computed from them
        column[key] = 1 + max((column[i] for i in inputs), default=-1)
    for key in nodes:  # a leaf stands just before the first operation that needs it
        users = [column[k] for k, (_, _, inputs) in nodes.items() if key in inputs]
        if not nodes[key][2]:
            column[key] = min(users) - 1
    place, used = {}, {}
    for key in nodes:
        used[column[key]] = used.get(column[key], -1) + 1
        place[key] = column[key], -used[column[key]]
    for key, (name, tensor, inputs) in nodes.items():
        for i in inputs:
            arrow = {"arrowstyle": "-|>", "color": "0.5", "shrinkA": 38, "shrinkB": 40}
            ax.annotate("", place[key], place[i], arrowprops=arrow)
        slope = f"\ngradient {slopes[key]:.3g}" if key in slopes else ""
        box = {"boxstyle": "round", "facecolor": "#fff3d6" if not inputs else "#dbe9f6", "edgecolor": "0.4"}
        text = f"{name}\nvalue {tensor.item():.3g}{slope}"
        ax.text(*place[key], text, ha="center", va="center", fontsize=9, bbox=box)
    columns, rows = (np.array(list(place.values()))).T
    ax.set(xlim=(columns.min() - 0.5, columns.max() + 0.5), ylim=(rows.min() - 0.5, rows.max() + 0.5))
    ax.set_title("(tanh(w x + b) - t)$^2$: values forward, gradients of the result backward")
    ax.set_axis_off()


def derivatives(f, x, order):
    """[f(x), f'(x), ..., the derivative of this order], each the gradient of the one before."""
    x = Tensor(x, requires_grad=True)
    found = [f(x)]
    for _ in range(order):
        found += grad(found[-1].sum(), x, create_graph=True)
    return [y.numpy() for y in found]


def draw(nodes, slopes, line, curves):
    """The graph, and a function on ``line`` with its derivatives."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    above, below = figure.subplots(2, 1)
    draw_graph(above, nodes, slopes)
    for n, curve in enumerate(curves):
        below.plot(line, curve, label="f(x) = tanh(x) exp($-x^2/4$)" if n == 0 else f"derivative of order {n}")
    below.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    below.set(xlabel="x", ylabel="value", title="derivatives of derivatives")
    below.legend()
    return figure


def main():
    config = options(__doc__, CONFIG)
    y, leaves = neuron(config.device)
    nodes = nodes_of(y, leaves)
    slopes = gradients(y, nodes)
    print("the graph, as text for Graphviz:")
    print(dot(nodes, slopes))
    w, x, b, t = (leaf.item() for leaf in leaves.values())
    a = np.tanh(w * x + b)
    by_hand = 2 * (a - t) * (1 - a**2) * x
    print(f"d loss / d w: by hand {by_hand:.12f}, by the engine {slopes[id(leaves['w'])]:.12f}")

    line = np.linspace(-4, 4, 801)
    curves = derivatives(lambda x: ops.tanh(x) * ops.exp(-(x**2) / 4), to_device(line, config.device), config.order)
    for n in range(1, len(curves)):  # compare with differences of the curve before
        difference = np.abs(np.gradient(curves[n - 1], line, edge_order=2) - curves[n])[1:-1].max()
        print(f"derivative of order {n}: at most {difference:.1e} from the differences of the curve before")
    save(draw(nodes, slopes, line, curves), config.out, "21_inside")


if __name__ == "__main__":
    run(main)
