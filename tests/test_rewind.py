"""Rewinding: back to the very weights, on with the very learning rate, as sparse as asked, and the same after a kill."""

import copy

import pytest
import torch
from torch import nn

from abridged.data.sets import get
from abridged.errors import InputError
from abridged.pruning.rewind import Late, find_ticket
from abridged.training import Callback, cosine, fit


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))


class Starts(Callback):
    """The weights with which each training began its first step, and all learning rates."""

    def __init__(self):
        self.seen, self.rates = [], []

    def on_step(self, moment):
        self.rates.append(moment.optimizer.param_groups[0]["lr"])

    def on_epoch(self, moment):
        self.seen.append({name: tensor.clone() for name, tensor in moment.model.state_dict().items()})


@pytest.mark.parametrize("rewind", [0, 1, 7])
def test_each_round_starts_from_the_remembered_weights(rewind, monkeypatch):
    from abridged.pruning import rewind as module

    starts = []

    def spying(model, data, **options):
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return fit(model, data, **options)

    monkeypatch.setattr(module, "fit", spying)
    model, data = net(), get("digits")
    rates = Starts()
    ticket = find_ticket(model, data, 0.8, rounds=3, rewind=rewind, epochs=2, callbacks=[rates], seed=1)
    assert len(starts) == 4
    steps = [history.steps for history in ticket.histories]
    assert steps == [38, 38 - rewind, 38 - rewind, 38 - rewind]
    assert rates.rates[38 : 38 + 38 - rewind] == pytest.approx(rates.rates[rewind:38]), "the schedule goes on"
    if rewind == 0:
        early = starts[0]
    else:
        other, early = net(), {}

        class Until(Callback):
            def on_step(self, moment):
                if moment.step == rewind:
                    early.update({name: tensor.clone() for name, tensor in moment.model.state_dict().items()})

        fit(other, data, epochs=2, callbacks=[Until()], seed=1)
    total = 64 * 20 + 20 * 10
    for turn, start in enumerate(starts[1:], 1):
        left = {name: start[name] != 0 for name in ticket.masks}
        assert sum(int(kept.sum()) for kept in left.values()) == round(0.2 ** (turn / 3) * total)
        for name, tensor in start.items():
            expected = early[name] * left[name] if name in left else early[name]
            assert torch.equal(tensor, expected), name
    assert ticket.masks.density == round(0.2 * total) / total
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in ticket.masks.items())


def test_killed_search_goes_on(tmp_path):
    class Kill(Callback):
        def __init__(self, at):
            self.left = at

        def on_epoch(self, moment):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    data, whole, again = get("digits"), net(), net()
    options = {"rounds": 2, "rewind": 5, "epochs": 2, "checkpoint": tmp_path}
    find_ticket(whole, data, 0.7, **{**options, "checkpoint": None})
    with pytest.raises(KeyboardInterrupt):
        find_ticket(net(), data, 0.7, callbacks=[Kill(4)], **options)
    find_ticket(again, data, 0.7, callbacks=[Callback()], **options)
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_late_scheduler_is_the_rest_of_the_early_one():
    def rates(make, steps):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5)
        scheduler = make(optimizer, 20)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step(), scheduler.step()
        return found

    assert rates(Late(cosine, 6), 14) == rates(cosine, 20)[6:]


def test_ticket_beats_its_size():
    data, model = get("digits"), net()
    ticket = find_ticket(
        model, data, 0.9, rounds=3, rewind=10, epochs=12, optimizer=lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9)
    )
    assert ticket.histories[-1].metric[-1] > 0.8
    assert "90.00%" in str(ticket.masks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \(0, 1\)"),
        ({"sparsity": 0.5, "rounds": 0}, "rounds must be a whole number from 1"),
        ({"sparsity": 0.5, "rewind": 19}, "from 0 to below 19"),
        ({"sparsity": 0.5, "rewind": -1}, "from 0 to below 19"),
        ({"sparsity": 0.5, "pruning": {"schedule": "cubic"}}, "leave schedule out"),
    ],
)
def test_mistakes_are_one_line(options, words):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=words):
        find_ticket(model, get("digits"), epochs=1, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
