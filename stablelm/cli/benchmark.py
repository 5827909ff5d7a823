"""`stablelm benchmark`: how fast a model reads and writes on this machine."""

from typing import Annotated, Any, Literal

import typer


def benchmark(
    model: Annotated[str, typer.Argument(help="A model in any form that opens (also a Hub id).")],
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens read.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens written after the first.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Texts measured, after one that warms up.")] = 3,
    quantize: Annotated[
        int | None, typer.Option(help="4 or 8 bits, rounded while loading.", show_default="as it is")
    ] = None,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Precision; auto is that of the files.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Rates of prefill and decoding (medians), beside the machine's copies; memory; the kernels that ran.

    Example: stablelm benchmark models/stablelm-3b --quantize 4
    """
    import json

    import torch

    from stablelm.auto import load
    from stablelm.cli.options import precision
    from stablelm.config import InputError
    from stablelm.inference.cpu_runner import why_not
    from stablelm.inference.quantization import is_packed
    from stablelm.interchange.kernel_report import kernel_report
    from stablelm.planning import resolve_device
    from stablelm.planning.devices import copy_rate, hardware
    from stablelm.planning.speed import measure, peak_memory

    network, _ = load(model, None if dtype == "auto" else precision(dtype), resolve_device(device), quantize)
    place, context = network.device, network.config.max_position_embeddings
    if prompt_tokens + new_tokens > context:
        raise InputError(
            f"--prompt-tokens {prompt_tokens:,} and --new-tokens {new_tokens:,} make "
            f"{prompt_tokens + new_tokens:,}, and the model's context is {context:,}. Lower one of them."
        )
    speed = measure(network, prompt_tokens, new_tokens, rounds)
    report = kernel_report(network, place)
    kernels = {
        "attention": f"{network.attention.name}: {network.attention.reason}",
        "in_prefill": report["sdpa_in_prefill"],
        "in_decoding": report["sdpa_in_decoding" if why_not(network) else "decoding"],
        "weights": report["quantised_weights"] if is_packed(network) else "PyTorch: dense products",
    }  # fmt: skip
    if network.attention.name != "sdpa":
        kernels = {key: kernels[key] for key in ("attention", "weights")}
    result: dict[str, Any] = {
        "model": model, "machine": hardware(place), "dtype": report["precision"],
        "weight_bytes": sum(tensor.nbytes for tensor in network.state_dict().values()),
        "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds,
        "prefill_tokens_per_second": speed.prefill, "decode_tokens_per_second": speed.decode,
        "bytes_per_token": speed.bytes_per_token, "decode_bytes_per_second": speed.bandwidth,
        "copy_bytes_per_second": copy_rate(place), "peak_memory_bytes": peak_memory(place),
        "kernels": kernels,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    machine = result["machine"]
    threads = f", {machine['threads']} threads" if place.type == "cpu" else ""
    size = f"{network.config.num_parameters:,} parameters, {result['weight_bytes'] / 1e9:.3g} GB"
    where = f"{machine['name']}{threads}, PyTorch {torch.__version__}"
    typer.echo(f"{model}: {size}, {result['dtype']}, on {where}")
    for line in (*speed.lines(place), f"peak memory: {result['peak_memory_bytes'] / 1e9:.3g} GB"):
        typer.echo(line)
    for name, value in kernels.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")
