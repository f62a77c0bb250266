"""K-prune against its loop written out: whole forward passes, a mask for every channel, design matrices."""

import copy

import pytest
import torch

import pyprune
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError, NumericsError
from pyprune.models.adapter import adapter_for
from pyprune.recipes import KPrune
from pyprune.testing.models import tiny_model

LENGTHS = (24, 9, 15, 27, 24, 15)
BUDGET = 0.5


def samples_of(lengths=LENGTHS, seed=0, labels=None):
    generator = torch.Generator().manual_seed(seed)
    return Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in lengths], labels)


def numbers(sample, count):
    """The recipe's random numbers of a sample: one for each prediction, `[count, 1]`."""
    return torch.rand(count, 1, generator=torch.Generator().manual_seed(hash((0, sample, 0)) & 0x7FFF_FFFF_FFFF_FFFF))


class Loop:
    """K-prune of a full-size model whose channels are masked: nothing is sliced, cached or batched."""

    def __init__(self, model, samples, recipe, share):
        self.dense, self.recipe = model, recipe
        self.student = copy.deepcopy(model)
        self.anatomy = adapter_for(model).anatomy(model)
        self.rows = [row["input_ids"][None] for row in samples.inputs]
        self.length = samples.lengths.double().mean().item()
        self.left = share * self.anatomy.flops(self.length)
        self.masks = {b.units.name: torch.ones(b.units.size * b.units.width).double() for b in self.anatomy.blocks}
        self.kept = {}
        for block in self.anatomy.blocks:
            self.student.get_submodule(block.projection).register_forward_pre_hook(self.masking(block.units.name))

    def masking(self, name):
        return lambda _, args: (args[0] * self.masks[name],)

    def run(self):
        for index, block in enumerate(self.anatomy.blocks):
            values = self.values(self.anatomy.blocks[index:])
            kept = self.search(self.anatomy.blocks[index:], values)[block.units.name]
            self.kept[block.units.name] = kept
            self.left -= len(kept) * block.units.cost.flops(self.length)
            mask = torch.zeros(block.units.size).double()
            mask[kept] = 1
            self.masks[block.units.name] = mask.repeat_interleave(block.units.width)
            self.refit(index, block)
        return self

    def values(self, blocks):
        """Mean, or for neurons the only, channel of every unit; heads times mu."""
        for block in blocks:
            self.masks[block.units.name].requires_grad_()
        gradients = {block.units.name: [] for block in blocks}
        for s, ids in enumerate(self.rows):
            says, says_dense = (model(ids).logits / self.recipe.temperature for model in (self.student, self.dense))
            p, q = says_dense.softmax(-1), says.softmax(-1)
            loss = (p * (p / q).log()).sum(-1).mean() * self.recipe.temperature**2
            if self.recipe.pred == "curvature":  # of labels drawn by inverting the distribution
                rows = q.flatten(0, -2)
                drawn = (rows.detach().cumsum(-1) < numbers(s, len(rows))).sum(-1)
                loss = -rows.log()[range(len(rows)), drawn].sum() * self.recipe.temperature / len(rows) ** 0.5
            found = torch.autograd.grad(loss, [self.masks[name] for name in gradients])
            for name, g in zip(gradients, found, strict=True):
                gradients[name].append(g)
        values = {}
        for block in blocks:
            units = block.units
            self.masks[units.name] = self.masks[units.name].detach()
            groups = torch.stack(gradients[units.name]).split(self.group)
            pred = 0.5 * sum(g.mean(0).square() for g in groups) / len(self.rows)
            weight = self.student.get_submodule(block.projection).weight
            x = self.seen(self.student, block)[0]
            rep = x.square().sum(0) * weight.square().mean(0) / len(x)
            both = self.recipe.lam_pred * pred + self.recipe.lam_rep * rep
            both = both.view(units.size, units.width).mean(1)
            values[units.name] = both if units.axis == "neurons" else both * self.recipe.mu
        return values

    @property
    def group(self):
        return self.recipe.batch if self.recipe.pred == "batch" else 1

    def search(self, blocks, values):
        """The best of all numbers of heads, filled up with neurons."""
        ranked = {True: [], False: []}
        for block in blocks:
            units = block.units
            ranked[units.axis == "neurons"] += [(v, units.name, u) for u, v in enumerate(values[units.name].tolist())]
        cost = {b.units.axis == "neurons": b.units.cost.flops(self.length) for b in blocks}
        for units in ranked.values():
            units.sort(reverse=True)
        best = None
        for heads in range(len(ranked[False]) + 1):
            left = self.left * (1 + 1e-12) - heads * cost.get(False, 0)
            if left < 0:
                break
            chosen = ranked[False][:heads] + ranked[True][: int(left / cost[True])]
            total = sum(value for value, _, _ in chosen)
            if best is None or total > best[0]:
                best = total, chosen
        return {b.units.name: sorted(u for _, name, u in best[1] if name == b.units.name) for b in blocks}

    @torch.no_grad()
    def seen(self, model, block):
        """Rows of a projection's input, its output, and the stream in front of the block."""
        first = model.get_submodule(block.entry[0] if block.entry else block.layer_path)
        last = model.get_submodule(block.projection)
        found, before = [], []
        handles = [
            first.register_forward_pre_hook(
                lambda _, args, kw: before.append(args[0] if args else kw["hidden_states"]), with_kwargs=True
            ),
            last.register_forward_hook(lambda _, args, y: found.append((args[0][0], y[0]))),
        ]
        for ids in self.rows:
            model(ids)
        for handle in handles:
            handle.remove()
        x, y = (torch.cat(column) for column in zip(*found, strict=True))
        return x, y, torch.cat([b[0] for b in before])

    @torch.no_grad()
    def refit(self, index, block):
        x, _, before = self.seen(self.student, block)
        _, target, dense_before = self.seen(self.dense, block)
        if block.exit is not None:
            target = target + dense_before - before
        x = x[:, self.masks[block.units.name] > 0]
        projection = self.student.get_submodule(block.projection)
        old = projection.weight[:, self.masks[block.units.name] > 0].T.clone()
        biased = projection.bias is not None
        mean_x, mean_t = (x.mean(0), target.mean(0)) if biased else (0, 0)
        centred = x - mean_x
        damping = (self.recipe.damping * centred.square().sum(0).mean()).sqrt() * torch.eye(x.shape[1]).double()
        new = torch.linalg.lstsq(torch.cat([centred, damping]), torch.cat([target - mean_t, damping @ old])).solution
        projection.weight[:, self.masks[block.units.name] > 0] = new.T
        if biased:
            projection.bias.copy_(mean_t - mean_x @ new)


CASES = [
    ("bert", "AutoModelForSequenceClassification"),
    ("llama", "AutoModelForCausalLM"),  # KV groups, no biases
    ("gpt_neox", "AutoModelForCausalLM"),  # cannot be run block by block
]


@pytest.mark.parametrize(
    ("variant", "head", "settings"),
    [
        *((*case, {}) for case in CASES),
        (*CASES[1], {"pred": "sample", "lam_rep": 1e-2}),
        (*CASES[0], {"pred": "batch", "batch": 3, "mu": 8.0}),
    ],
)
def test_equals_the_loop_written_out(variant, head, settings):
    model = tiny_model(variant, head, torch.float64).requires_grad_(False)
    recipe = KPrune(**settings)
    truth = Loop(model, samples_of(), recipe, BUDGET).run()
    result = pyprune.prune(model, {"flops": BUDGET}, samples_of(), recipe=recipe)
    assert {name: units.tolist() for name, units in result.plan.kept.items()} == truth.kept
    assert any(0 < len(units) < result.plan.sizes[name] for name, units in truth.kept.items())
    for block in result.anatomy.blocks:
        channels = truth.masks[block.units.name] > 0
        found, expected = (m.get_submodule(block.projection) for m in (result.pruned, truth.student))
        torch.testing.assert_close(found.weight.detach(), expected.weight[:, channels], rtol=1e-6, atol=1e-9)
        if found.bias is not None:
            torch.testing.assert_close(found.bias.detach(), expected.bias, rtol=1e-6, atol=1e-9)


def weights(result):
    return {name: p.detach() for name, p in result.pruned.named_parameters()}


@pytest.mark.parametrize(("variant", "head"), [*CASES, ("bart", "AutoModel")])
def test_what_is_not_kept_in_memory_is_computed_again(variant, head):
    model = tiny_model(variant, head, torch.float64)
    kept, anew, some = (
        pyprune.prune(model, {"flops": BUDGET}, samples_of(), recipe="kprune", memory=gib) for gib in (1.0, 0.0, 3e-5)
    )
    for other in (anew, some):
        for name, p in weights(kept).items():
            torch.testing.assert_close(weights(other)[name], p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("variant", "head"), [("bart", "AutoModelForSeq2SeqLM"), ("gpt_neox", "AutoModelForCausalLM")])
def test_settled_layers_of_any_family_run_once(variant, head):
    """For every batch and model a layer runs for its own blocks, once more when it is settled, and then no more."""
    model = tiny_model(variant, head, torch.float64)
    anatomy, runs = adapter_for(model).anatomy(model), []
    first, last = anatomy.blocks[0], anatomy.blocks[-1]
    for block in (first, last):
        model.get_submodule(block.projection).register_forward_hook(lambda *_, b=block: runs.append(b))
    counts = {}
    for memory in (1.0, 0.0):
        runs.clear()
        pyprune.prune(model, {"flops": 0.7}, samples_of(), recipe="kprune", memory=memory, dry_run=True)
        counts[memory] = runs.count(first), runs.count(last)
    assert counts[1.0][1] == counts[0.0][1]
    assert counts[1.0][0] < 0.6 * counts[0.0][0]


def test_layers_that_are_settled_are_not_run_again():
    """Passes begin at the layer that is cut; a model that reads other layers too is run whole, with the same plan."""
    model = tiny_model("bert", "AutoModelForSequenceClassification", torch.float64)
    reads, calls = [], []
    for layer in model.base_model.encoder.layer:
        layer.attention.self.query.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
    pyprune.prune(model, {"flops": BUDGET}, samples_of(), recipe="kprune")
    first, *_, last = (calls.count(layer) for layer in model.base_model.encoder.layer)
    assert first < last

    def remember(_, args, output):
        reads.append(output[0] if isinstance(output, tuple) else output)

    def look(_, args, output):
        output.logits = (
            output.logits + reads[-1].mean((1, 2))[:, None] * torch.tensor([9.0, -9.0, 0.0])[: output.logits.shape[1]]
        )
        return output

    other = tiny_model("bert", "AutoModelForSequenceClassification", torch.float64)
    other.base_model.encoder.layer[0].register_forward_hook(remember)
    other.register_forward_hook(look)
    truth = Loop(other.requires_grad_(False), samples_of(), KPrune(), BUDGET).run()
    result = pyprune.prune(other, {"flops": BUDGET}, samples_of(), recipe="kprune", dry_run=True)
    assert {name: units.tolist() for name, units in result.plan.kept.items()} == truth.kept


def test_no_label_is_read():
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    labels = [torch.tensor(i % 2) for i in range(len(LENGTHS))]
    plans = [
        pyprune.prune(model, {"flops": BUDGET}, samples_of(labels=given), recipe="kprune", dry_run=True).plan
        for given in (None, labels)
    ]
    for name, units in plans[0].kept.items():
        assert torch.equal(units, plans[1].kept[name])


@pytest.mark.parametrize("budget", [{"params": 0.4}, {"flops": 0.7, "params": 0.5}, {"flops": 0.02}, {"flops": 1.0}])
def test_the_budget_is_met_to_a_unit(budget):
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    result = pyprune.prune(model, budget, samples_of(), recipe="kprune")
    plan, anatomy = result.plan, result.anatomy
    whole = {"flops": anatomy.flops(plan.length), "params": anatomy.params()}
    smallest = min(g.cost.params for g in anatomy.groups) / whole["params"]
    shares = {resource: plan.cost(anatomy, resource) / whole[resource] for resource in budget}
    assert all(share <= budget[resource] * (1 + 1e-9) for resource, share in shares.items())
    assert any(share > budget[resource] - 1.01 * smallest for resource, share in shares.items())
    assert plan.meta["budget"].keys() == budget.keys()
    assert result.scores.meta["criterion"] == "kprune"
    if budget == {"flops": 1.0}:
        assert plan.counts == plan.sizes


def test_floors_multiples_and_axes_hold():
    model = tiny_model("llama", "AutoModelForCausalLM")
    bounds = {"floor": {"layers.1.neurons": 20}, "axes": ["neurons"], "keep": ["*layers.0.mlp*"]}
    plan = pyprune.prune(model, {"params": 0.9}, samples_of(), recipe="kprune", dry_run=True, **bounds).plan
    assert plan.counts["layers.0.neurons"] == plan.sizes["layers.0.neurons"]
    assert plan.counts["layers.1.neurons"] >= 20
    assert all(plan.counts[name] == size for name, size in plan.sizes.items() if name.endswith("kv_groups"))
    wide = pyprune.prune(model, {"params": 0.6}, samples_of(), recipe="kprune", dry_run=True, multiple_of=8).plan
    assert all(count % 8 == 0 for name, count in wide.counts.items() if name.endswith("neurons"))


def test_query_heads_are_cut_one_by_one():
    model = tiny_model("llama", "AutoModelForCausalLM", num_attention_heads=8)
    settings = {"recipe": "kprune", "mu": None, "axes": ["query_heads", "neurons"]}
    result = pyprune.prune(model, {"flops": 0.6}, samples_of(), **settings)
    whole = result.anatomy.flops(result.plan.length)
    assert 0.5 * whole < result.plan.cost(result.anatomy, "flops") <= 0.6 * whole
    heads = {name: len(units) for name, units in result.plan.kept.items() if name.endswith("query_heads")}
    assert any(count < result.plan.sizes[name] for name, count in heads.items())
    assert all(check.equal for check in pyprune.verify_model(model, result.plan, result.pruned))


def test_a_refit_that_fails_is_an_outcome():
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    result = pyprune.prune(model, {"flops": 0.8}, samples_of((3,)), recipe="kprune", damping=1e-300)
    reasons = {outcome.reason for outcome in result.outcomes if not outcome.fitted}
    assert reasons == {"singular statistics: more data or more damping is needed"}
    assert any("3 calibration tokens for the" in notice for notice in result.notices)
    assert not pyprune.prune(model, {"flops": 0.8}, samples_of(), recipe="kprune", tuning="none").outcomes


def test_what_is_not_finite_is_named():
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    model.base_model.encoder.layer[1].intermediate.register_forward_hook(lambda _, args, y: y * torch.inf)
    with pytest.raises(NumericsError, match=r"gradients or activations of layers\.\d\.\w+ hold NaN or Inf"):
        pyprune.prune(model, {"flops": 0.8}, samples_of(), recipe="kprune")


def test_a_block_of_one_unit_is_told():
    model = tiny_model("bert", "AutoModelForSequenceClassification", num_attention_heads=1)
    result = pyprune.prune(model, {"flops": 0.5}, samples_of(), recipe="kprune")
    assert any("layers.0.heads has one unit: the block stays whole, or goes" in notice for notice in result.notices)
    assert all(check.equal for check in pyprune.verify_model(model, result.plan, result.pruned))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, r"temperature=0.0 must be above 0"),
        ({"temperature": -2.0}, r"temperature=-2.0 must be above 0"),
        ({"temperature": float("nan")}, r"temperature=nan must be above 0"),
        ({"mu": 0.0}, r"mu=0.0 must be above 0"),
        ({"lam_rep": -1.0}, r"lam_rep=-1.0 must be 0 or more"),
        ({"lam_pred": 0.0, "lam_rep": 0.0}, "no knowledge is left to score by"),
        ({"pred": "all"}, r"pred='all' must be"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"tuning": "mask"}, "tuning='mask' must be refit or none"),
        ({"damping": 0.0}, "damping=0.0 must be positive"),
        ({"memory": -1.0}, "memory=-1.0 must be 0 or more"),
        ({"compat": "yes"}, "compat='yes' must be 'published'"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(InputError, match=says):
        KPrune(**settings)


def test_what_it_cannot_do_is_said_before_anything_is_done(tmp_path):
    model, data = tiny_model("bert"), samples_of()
    with pytest.raises(InputError, match="recipe='kprune' scores blocks while it prunes"):
        pyprune.score(model, data, recipe="kprune")
    with pytest.raises(InputError, match="deploy='uniform': not possible with recipe='kprune'"):
        pyprune.prune(model, {"flops": 0.9}, data, recipe="kprune", deploy="uniform", out=tmp_path / "small")
    with pytest.raises(InputError, match=r"recipe='kprune': not possible for the axis layers"):
        pyprune.prune(model, {"flops": 0.9}, data, recipe="kprune", tuning="none", axes=["layers", "neurons"])
    assert not list(tmp_path.iterdir())


def test_published_settings():
    recipe = KPrune(compat="published", batch=8)
    assert (recipe.pred, recipe.batch) == ("batch", 32)
