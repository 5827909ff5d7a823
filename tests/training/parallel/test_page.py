"""The numbers of docs/parallelism.md, from the seed's sizes."""

from stablelm.config import ModelConfig


def test_the_page_states_what_the_sizes_make(root):
    text = (root / "docs" / "parallelism.md").read_text("utf-8")
    config = ModelConfig()
    n, gb = config.num_parameters, 1e9
    block = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    embeddings = 2 * config.vocab_size * config.hidden_size
    one = 4 * 4096 * config.hidden_size * 2
    for number in (
        f"{n:,}", f"16N ({16 * n / gb:.1f})", f"16N/S ({16 * n / 256 / gb:.2f})", f"2N ({2 * n / gb:.1f})",
        f"4N ({4 * n / gb:.1f})", f"8N ({8 * n / gb:.1f})", f"2N + 4N ({6 * n / gb:.1f})",
        f"both embeddings ({2 * (2 * block + embeddings) / gb:.1f})", f"16N/8 ({16 * n / 8 / gb:.1f} GB)",
        f"2 · 4N/8 ({n / gb:.1f} GB)", f"{one / 1e6:.0f} MB each", f"{8 * one * 0.75 / 1e6:.0f} MB a block",
        f"{8 * one * 0.75 * config.num_hidden_layers / gb:.1f} GB a micro-batch",
        f"{4 * 8 * one * 0.75 * config.num_hidden_layers / gb:.0f} GB",
    ):  # fmt: skip
        assert " ".join(number.split()) in " ".join(text.split()), number
