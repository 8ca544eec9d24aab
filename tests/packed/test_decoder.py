"""The packed decoder against the model that it was packed from, and against itself on other threads."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.packed import PackedDecoder, decoder, difference, pack, reference
from residuum.packed.weights import Packed

pytest.importorskip("numba", reason="because the extra `packed` is not installed")

SETTINGS: dict[str, dict[str, Any]] = {
    "as BitNet's": {"activation": "squared_reglu", "norm": "rmsnorm", "positions": "rotary", "n_kv_heads": 1},
    "bitnet-arithmetic": {"activation": "squared_relu", "norm": "rmsnorm", "positions": "rotary"},
    "swiglu": {"activation": "swiglu", "norm": "rmsnorm", "positions": "rotary", "d_ff": 70, "sub_norm": False},
    "gelu": {"activation": "gelu", "head": "untied"},
    "relu": {"activation": "relu", "positions": "sinusoidal", "residual": "weighted", "n_heads": 2, "n_kv_heads": 1},
    "dropped": {"residual": "stochastic-depth", "dropout": 0.1, "norm": "rmsnorm", "d_model": 64, "n_heads": 4},
    "one head of one": {"d_model": 1, "n_heads": 1, "d_ff": 1, "norm": "rmsnorm"},
}


def errors(y: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each place, relative."""
    return np.linalg.norm(y - wanted, axis=1) / np.linalg.norm(wanted, axis=1)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "residuum-packed"]


def one_by_one(packed: Packed, text: list[int], threads: int = 1) -> NDArray[np.float32]:
    reader = PackedDecoder(packed, threads)
    return np.stack([reader.read([token]) for token in text])


@torch.inference_mode()
def scores(model: Transformer, text: list[int]) -> NDArray[np.float32]:
    return model(torch.tensor([text]))[0].numpy()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_scores_are_the_models_own(make, text, settings) -> None:
    """But where float32's own rounding moves an activation past a half: by one of 127 levels, and all that follows."""
    found = []
    for seed in range(4):
        model = make(seed, **settings)
        packed = pack(model, "float")
        y, wanted = one_by_one(packed, text), scores(model, text)
        found.append([errors(y, wanted), errors(reference.scores(packed, text), wanted)])
    ours, plain = np.array(found).swapaxes(0, 1)
    for error in (ours, plain):
        assert np.median(error) < 1e-6
        assert (error < 1e-6).mean() > 0.6
        assert error.max() < 0.2


@pytest.mark.parametrize("embedding", ["int8", "float"])
def test_scores_are_those_of_plain_numpy(make, text, embedding) -> None:
    found = []
    for seed in range(4):
        packed = pack(make(seed, activation="swiglu", norm="rmsnorm", head="untied"), embedding)
        found.append(errors(one_by_one(packed, text), reference.scores(packed, text)))
    assert np.median(found) < 1e-6
    assert np.max(found) < 0.2


def test_a_trained_model_writes_the_same_text(trained) -> None:
    for embedding in ("int8", "float"):
        reader = PackedDecoder(pack(trained, embedding), 2)
        for prompt in ([0, 1, 2], [5, 7, 9, 11], [30, 0, 1, 2], [29, 0, 2]):
            reader.forget()
            text, new = list(prompt), list(prompt)
            for _ in range(16):
                new = [int(reader.read(new).argmax())]
                assert new[0] == scores(trained, text)[-1].argmax()
                text += new
            stride = prompt[2] - prompt[1]
            assert text == [(prompt[0] + stride * i) % 31 for i in range(len(text))]


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "swiglu", "norm": "rmsnorm", "positions": "rotary", "n_kv_heads": 1},
        {"activation": "gelu", "d_ff": 70},
        {"activation": "squared_reglu", "d_ff": 531, "d_model": 33},
    ],
)
def test_threads_and_pieces_change_no_bit(make, text, monkeypatch, settings) -> None:
    """Nor does where in memory a decoder's arrays happen to lie, which differs from one to the next."""
    packed = pack(make(**settings))
    wanted = one_by_one(packed, text)
    for threads in 4 * (1, 2, 3, 2 * (os.cpu_count() or 1) + 1):
        reader = PackedDecoder(packed, threads)
        assert np.array_equal(reader.read(text), wanted[-1])
        assert reader.length == len(text)
        reader.forget()
        assert reader.length == 0
        assert np.array_equal(reader.read(text[:7]), wanted[6])
        for end in (8, 20, len(text)):
            assert np.array_equal(reader.read(text[reader.length : end]), wanted[end - 1])
    monkeypatch.setattr(decoder, "PIECE", 9)
    assert np.array_equal(PackedDecoder(packed, 2).read(text), wanted[-1])


def test_scores_are_the_callers_to_keep(make, text) -> None:
    reader = PackedDecoder(pack(make()), 1)
    first = reader.read(text[:3])
    kept = first.copy()
    reader.read(text[3:5])
    assert np.array_equal(first, kept)
    assert first.shape == (31,)
    assert first.dtype == np.float32


def test_what_cannot_be_read_is_refused_and_changes_nothing(make, text) -> None:
    reader = PackedDecoder(pack(make()), 2)
    wanted = reader.read(text)
    assert reader.context == len(text)
    with pytest.raises(ValueError, match="41 tokens are more than the model's context of 40"):
        reader.read([0])
    reader.forget()
    reader.read(text[:-1])
    for wrong, said in (([], "at least one"), ([31], "vocabulary of 31"), ([-1], "vocabulary"), ([0, 0], "context")):
        with pytest.raises(ValueError, match=said):
            reader.read(wrong)
    assert np.array_equal(reader.read(text[-1:]), wanted)
    with pytest.raises(ValueError, match="0 threads"):
        PackedDecoder(pack(make()), 0)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_thread_that_cannot_begin_keeps_no_other_waiting(make, text, missing) -> None:
    reader = PackedDecoder(pack(make()), 3)
    wanted, kernels = reader.read(text), reader._kernels
    reader.forget()
    reader.read(text[:-1])

    def forward(*arguments: Any) -> None:
        if arguments[-2] == missing:
            raise MemoryError
        kernels.forward(*arguments)

    reader._kernels = SimpleNamespace(LINE=kernels.LINE, LEFT=kernels.LEFT, forward=forward)
    for _ in range(3):
        with pytest.raises(MemoryError):
            reader.read(text[-1:])
    reader._kernels = kernels
    assert np.array_equal(reader.read(text[-1:]), wanted)


# An interrupt in what Python calls by itself (the collector's callbacks, finalizers) is printed and goes no further.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="because this system has no interval timer")
def test_an_interrupt_at_any_moment_leaves_a_decoder_that_works(make, text) -> None:
    """The timer raises in Python's main thread as Ctrl-C does; delays from none to that of a few passes."""
    reader = PackedDecoder(pack(make()), 3)
    wanted, armed, stopped = reader.read(text), [False], 0

    def stop(*_: Any) -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for number in range(150):
            reader.forget()
            try:
                armed[0] = True
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + 4e-6 * number)
                while armed[0]:
                    reader.read(text)
                    reader.forget()
            except KeyboardInterrupt:
                stopped += 1
                assert reader.length in (0, len(text))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped > 100
    assert np.array_equal(reader.read(text), wanted)


def test_threads_sleep_between_calls_and_end_with_the_decoder(make, text) -> None:
    gc.collect()
    before = set(workers())
    reader = PackedDecoder(pack(make()), 3)
    reader.read(text)
    own = [thread for thread in workers() if thread not in before]
    assert len(own) == 2
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.1
    del reader
    for thread in own:
        thread.join(10)
        assert not thread.is_alive()


FORK = """
import os, torch
from residuum.model import ModelConfig, Transformer
from residuum.packed import PackedDecoder, pack
torch.manual_seed(0)
shape = dict(vocab_size=31, context=40, d_model=36, n_layers=2, n_heads=3)
reader = PackedDecoder(pack(Transformer(ModelConfig(**shape, linear="ternary")).eval()), 3)
reader.read([1, 2])
child = os.fork()
same = reader.read([3, 4])
if not child:
    os.write(1, b"child " + same.tobytes().hex().encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os.write(1, b" parent " + same.tobytes().hex().encode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="because this system does not fork")
def test_a_forked_decoder_goes_on_in_both_processes() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True) as process:
        try:
            said = process.communicate(timeout=60)[0].split()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the child, too, which would keep the pipe open
    assert said[::2] == ["child", "parent"]
    assert said[1] == said[3]


def test_threads_that_cannot_start_are_one_error_and_none_is_left(make, monkeypatch) -> None:
    gc.collect()
    before, start, packed = set(workers()), threading.Thread.start, pack(make())

    def at_most_three(thread: threading.Thread) -> None:
        if len(set(workers()) - before) == 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", at_most_three)
    with pytest.raises(InputError, match="threads is 100000, more than the system starts") as refusal:
        PackedDecoder(packed, 100_000)
    assert "\n" not in str(refusal.value)
    for thread in set(workers()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_another_thread_is_refused_while_one_reads(make, text) -> None:
    reader = PackedDecoder(pack(make()), 2)
    wanted, kernels = reader.read(text), reader._kernels
    reader.forget()
    begun, go_on, found = threading.Event(), threading.Event(), []

    def forward(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(10)
        kernels.forward(*arguments)

    reader._kernels = SimpleNamespace(LINE=kernels.LINE, LEFT=kernels.LEFT, forward=forward)
    first = threading.Thread(target=lambda: found.append(reader.read(text)))
    first.start()
    try:
        assert begun.wait(10)
        for refused in (lambda: reader.read([1]), reader.forget):
            with pytest.raises(RuntimeError, match="another thread reads with this decoder"):
                refused()
    finally:
        go_on.set()
        first.join(10)
    assert np.array_equal(found[0], wanted)
    reader.forget()
    assert np.array_equal(reader.read(text), wanted)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "one head of one"])  # where 1e38 is no overflow
@pytest.mark.parametrize("connection", ["attn_residual", "ff_residual"])
def test_what_overflows_reaches_the_scores(make, text, name, connection) -> None:
    model = make(**SETTINGS[name])
    with torch.no_grad():
        getattr(model.blocks[-1], connection).norm.gain.fill_(1e38).mul_(3)
    reader = PackedDecoder(pack(model), 2)
    assert np.isnan(scores(model, text)[-1]).all()
    assert np.isnan(reader.read(text)).all()
    reader.forget()
    with pytest.raises(InputError, match="scores are not finite"):
        difference(model, reader, text)


def test_the_difference_of_scores_that_are_all_zero_is_none(make, text) -> None:
    model = make(head="untied")
    with torch.no_grad():
        model.head.weight.zero_()
    assert difference(model, PackedDecoder(pack(model), 1), text) == (0, 0, 0)


def test_the_difference_is_measured(trained, text) -> None:
    exact, rounded = (
        difference(trained, PackedDecoder(pack(trained, embedding), 1), text) for embedding in ("float", "int8")
    )
    assert exact.relative < rounded.relative < 0.1
    assert 0 < rounded.rms < rounded.largest
    own = scores(trained, text)
    assert rounded.relative == pytest.approx(rounded.rms / np.sqrt((own**2).mean()), rel=1e-4)


def test_without_numba_the_extra_is_named(make, monkeypatch) -> None:
    packed = pack(make())
    monkeypatch.setattr(decoder.importlib, "import_module", lambda name: (_ for _ in ()).throw(missing("numba")))
    with pytest.raises(InputError, match=r"pip install residuum\[packed\]"):
        PackedDecoder(packed)
    monkeypatch.setattr(decoder.importlib, "import_module", lambda name: (_ for _ in ()).throw(missing("other")))
    with pytest.raises(ModuleNotFoundError):
        PackedDecoder(packed)


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named '{name}'", name=name)


def test_the_config_is_the_models(make) -> None:
    assert isinstance(pack(make()).config, ModelConfig)
