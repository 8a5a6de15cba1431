"""(c) The same maths in eager PyTorch: `nn.Sequential`, `torch.optim.SGD`, one Python call per operation."""

import time
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import (
    BATCH_SIZE,
    LEARNING_RATE,
    WIDTHS,
    Arguments,
    Clock,
    emit,
    emit_epoch,
    load_task,
    parse_arguments,
    permutation,
)
from benchmarks.torch_without_cuda import late_binding


def main(arguments: Arguments) -> None:
    """Train and evaluate every epoch, then save."""
    clock = Clock()
    with late_binding():
        import torch

    clock.lap("import")
    task = load_task(arguments)
    images, labels = torch.from_numpy(task.train_images), torch.from_numpy(task.train_labels)
    test_images, test_labels = torch.from_numpy(task.test_images), torch.from_numpy(task.test_labels)
    clock.lap("data")
    model = build_model(torch, task.weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    clock.lap("build")
    for epoch in range(arguments.epochs):
        start = time.perf_counter()
        order = torch.from_numpy(permutation(epoch, len(images)))
        loss, accuracy = train_epoch(torch, model, optimizer, data=(images, labels), order=order)
        seconds = time.perf_counter() - start
        test_loss, test_accuracy = evaluate(torch, model, test_images, test_labels)
        emit_epoch(
            epoch + 1,
            seconds=seconds,
            loss=loss,
            accuracy=accuracy,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
        )
    clock.lap("train and evaluate")
    torch.save(model.state_dict(), arguments.output_dir / "model.pt")
    clock.lap("save")
    emit("run.end", phases=clock.phases)


def build_model(torch: Any, weights: list[NDArray[np.float32]]) -> Any:
    """The reference model without its softmax, which PyTorch's cross-entropy contains."""
    layers: list[Any] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.Sigmoid()]
    model = torch.nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            # A PyTorch kernel is [out, in]; a bias is its own transpose.
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
    return model


def train_epoch(torch: Any, model: Any, optimizer: Any, *, data: tuple[Any, Any], order: Any) -> tuple[float, float]:
    """One pass in the given order; sums stay tensors, since reading one would wait for every step."""
    images, labels = data
    loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for rows in order.split(BATCH_SIZE):
        batch_labels = labels[rows]
        logits = model(images[rows])
        loss = torch.nn.functional.cross_entropy(logits, batch_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(rows)
        correct += (logits.detach().argmax(1) == batch_labels).sum()
    return float(loss_sum) / len(order), int(correct) / len(order)


def evaluate(torch: Any, model: Any, images: Any, labels: Any) -> tuple[float, float]:
    """Mean loss and accuracy over the test split."""
    with torch.no_grad():
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return float(loss), float((logits.argmax(1) == labels).double().mean())


if __name__ == "__main__":
    main(parse_arguments())
