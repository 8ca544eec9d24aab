"""Audit a run on text that it was not trained on, and write the report that training ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.nn.functional import cross_entropy

from residuum.audit.audit import Audit, judge
from residuum.audit.charts import parts_chart, training_chart
from residuum.audit.experts import Experts
from residuum.audit.finding import Evidence, source_of
from residuum.audit.html import render_page
from residuum.audit.ternary import Maps
from residuum.audit.twin import Twins
from residuum.errors import InputError
from residuum.files import write_whole
from residuum.stream import flow
from residuum.train.evaluate import held_out_batch
from residuum.train.run_folder import RunFolder
from residuum.train.ternary import sizes
from residuum.train.text import read_corpus
from residuum.train.tokenizer import tokenize


def audit_run(folder: RunFolder, select: Sequence[str] = (), ignore: Sequence[str] = ()) -> Audit:
    """The newest checkpoint on held-out text, with the training loss but no dropout."""
    if not folder.tokenizer_file.is_file():
        raise InputError(f"{folder.tokenizer_file} is missing: put it back, or look at the run's --structure")
    recipe = folder.recipe
    model = folder.model()
    corpus = read_corpus(recipe.data)
    x, y = held_out_batch(recipe, tokenize(folder.tokenizer, corpus.held_out), folder.tokenizer)
    measured = flow(model, x, loss=lambda scores: cross_entropy(scores.flatten(0, 1).float(), y.flatten()))
    name = "next-token cross-entropy on held-out text" + (", of answers alone" if recipe.data.answer else "")
    if corpus.fingerprint != folder.made_with().get("data_fingerprint"):
        name += " (not the run's own: data.source has changed since)"
    measured = replace(measured, loss_name=name)
    seen = Evidence(measured.graph, measured, warmup_steps=recipe.optim.warmup, model_source=source_of(model))
    changed = folder.changed_code()
    return judge(seen, folder.path.name, select, ignore, [changed] if changed else [])


def write_report(folder: RunFolder, audit: Audit) -> None:
    """`report.html` of the run."""
    lines = folder.metrics()
    recipe, made_with = folder.recipe, folder.made_with()
    model = recipe.model
    shape = f"{model.n_layers} blocks of width {model.d_model}, residual “{model.residual}”"
    facts = [
        f"{folder.n_parameters():,} parameters: {shape}",
        f"Trained on {recipe.data.source} for {recipe.run.steps} steps with seed {recipe.run.seed}; "
        f"torch {made_with.get('torch')}, Python {made_with.get('python')}",
    ]
    samples = folder.samples_file.read_text(errors="replace") if folder.samples_file.exists() else ""
    newest = samples.rpartition("== step ")[2].partition("\n")[2].strip()
    twins, maps = Twins.of(folder), Maps(lines, sizes(model)).part()
    more = [part for part in (twins and twins.part(), maps, Experts(lines).part()) if part]
    page = render_page(audit, training_chart(lines), facts, newest, parts_chart(lines), more)
    write_whole(folder.report_file, page)


def run_lines(folder: RunFolder) -> list[str]:
    """What a terminal says of a run besides its audit: of ternary maps, of experts, and what its twin is better at."""
    lines, twins = folder.metrics(), Twins.of(folder)
    found = [*Maps(lines, sizes(folder.recipe.model)).findings(), *Experts(lines).findings()]
    return [*found, *([f"against its full-precision twin: {twins.finding}"] if twins else [])]
