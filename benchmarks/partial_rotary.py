"""What rotating a quarter of each head saves: forward time with rotary on 25 % and on 100 % of the
dimensions.

The model card gives "improved throughput" as the reason for the quarter. Four blocks of the 3B model's shape,
the same weights, one sequence; nothing else differs.

    .venv/bin/python benchmarks/partial_rotary.py
"""

import argparse
import json
import time

import torch
from measure import interleave, ratio, summary, write_result

from stablelm.config import preset
from stablelm.model import StableLM
from stablelm.planning import hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, default=1024, help="tokens in the sequence")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    ids = torch.randint(0, 50_277, (1, options.length), generator=torch.Generator().manual_seed(0))

    def side(share: float):
        config = preset("stablelm-3b-4e1t", num_hidden_layers=options.layers, partial_rotary_factor=share)
        model = StableLM(config, seed=1).to(getattr(torch, options.dtype))

        @torch.inference_mode()
        def forward() -> float:
            began = time.perf_counter()
            model.hidden_states(ids)  # without the head, whose share would depend on the number of layers
            return time.perf_counter() - began

        forward()
        return forward

    seconds = interleave({"25 %": side(0.25), "100 %": side(1.0)}, options.rounds)
    result = {
        "layers": options.layers,
        "tokens": options.length,
        "dtype": options.dtype,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "speed_ratio": ratio(seconds["25 %"], seconds["100 %"]),
    }
    print(json.dumps(result, indent=2))
    print(write_result("partial_rotary", result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
