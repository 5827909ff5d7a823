"""Hashes are the same on every machine, Python and run."""

import os
import subprocess
import sys

from stablelm.storage import fingerprint, keyed_uint64, sha256_file, sha256_text

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == sha256_text("abc") == ABC
    million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"  # appendix B.3
    (tmp_path / "million").write_bytes(b"a" * 1_000_000)
    assert sha256_file(tmp_path / "million") == million
    (tmp_path / "blocks").write_bytes(b"a" * (3 << 20))
    assert sha256_file(tmp_path / "blocks") == sha256_text("a" * (3 << 20))


def test_a_fingerprint_ignores_the_order_of_keys_only():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    different = [{"a": 1, "b": [2, 1]}, {"a": 1.5, "b": [1, 2]}, {"a": "1", "b": [1, 2]}, {"a": 1}]
    assert len({fingerprint(value) for value in [{"a": 1, "b": [1, 2]}, *different]}) == 5


def test_keys_are_kept_apart_and_spread():
    assert keyed_uint64("a", "bc") != keyed_uint64("ab", "c")
    assert keyed_uint64("a", 1) != keyed_uint64("a", 2)
    drawn = {keyed_uint64("weight", i) for i in range(10_000)}
    assert len(drawn) == 10_000
    assert 0.49 < sum(drawn) / len(drawn) / 2**64 < 0.51


def test_keys_do_not_depend_on_the_process():
    code = "from stablelm.storage import keyed_uint64; print(keyed_uint64('order', 'web', 3))"
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        printed = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
        )
        assert int(printed.stdout) == keyed_uint64("order", "web", 3)
