"""A plan in words."""

from onediff_jax.plan.estimate import estimate_of
from onediff_jax.plan.plan import Plan
from onediff_jax.plan.report import source_lines, traffic_lines, work_lines

GIB = 2**30
PARTS = 16  # parts of the network that are listed


def plan_lines(plan: Plan) -> list[str]:
    """A plan as a table; where the step does not fit, its largest arrays instead of estimates."""
    made, topology = plan.compiled, plan.topology
    kinds = plan.held | {"padding": max(made.taken - sum(plan.held.values()), 0)}
    kinds |= {"results": made.returned, "temporaries": made.bytes - made.taken - made.returned}
    lines = [
        f"{topology.name}: {topology.devices} devices, {topology.generation.kind}.  Nothing ran on "
        "them: all times are estimates.",
        row("parameters", f"{plan.params:,}"),
        row("memory a device", f"{gib(made.bytes)} of {gib(plan.limit)} GiB, {plan.used:.0%}"),
        *(row(f"  {kind}", f"{gib(size)} GiB") for kind, size in kinds.items()),
        row("FLOPs a device", f"{plan.flops.total / topology.devices / 1e12:.2f} T"),
        *(
            row(f"  {network}", f"{flops / topology.devices / 1e12:.2f} T")
            for network, flops in {**plan.flops.trained, **plan.flops.encoders}.items()
        ),
    ]
    if not plan.fits:
        lines.append(f"It does not fit: {made.refusal}  The largest arrays of a device:")
        return lines + [
            f"  {gib(t.bytes):>6} GiB  {t.shape}  {t.source[-90:]}" for t in made.largest
        ]
    return lines + estimate_lines(plan)


def estimate_lines(plan: Plan) -> list[str]:
    """What the step is estimated to take, and what follows from it."""
    topology, estimate = plan.topology, plan.estimate
    program, machine = plan.compiled.program, topology.generation
    slow = estimate_of(program, machine, machine.link / 2)
    lines = [
        "estimated seconds of a step",
        *work_lines(estimate),
        "by part of the network",
        *source_lines(program, machine, PARTS),
        "exchanges of a step, on a device",
        *traffic_lines(estimate),
        row("MFU", mfu(plan, estimate.compute, "compute-only")),
        *(
            row("", mfu(plan, seconds, f"with communication at {rate / 1e9:.0f} GB/s"))
            for seconds, rate in (
                (estimate.seconds, machine.link),
                (slow.seconds, machine.link / 2),
            )
        ),
        row("steps a second", f"{1 / estimate.seconds:.3f}"),
        row("samples a second", f"{plan.samples_per_second:.1f}"),
        row("", f"{plan.samples_per_host:.1f} to be read by each of {topology.hosts} hosts"),
        row("the whole run", f"{plan.days:.2f} days for {plan.steps:,} steps"),
    ]
    if unknown := program.unknown_loops:
        lines.append(f"loops that do not say how often they run, counted once: {unknown}")
    return [*lines, f"compiled in {plan.compiled.seconds:.0f} s"]


def mfu(plan: Plan, seconds: float, what: str) -> str:
    """MFU of the model, and with frozen encoders inside the step where there are some."""
    said = f"{plan.mfu(seconds):.1%} {what}"
    return said + f"; {plan.mfu(seconds, True):.1%} with encoders" * bool(plan.flops.encoders)


def row(name: str, value: str) -> str:
    """A line of the table."""
    return f"  {name:20}{value}"


def gib(size: int) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f}"
