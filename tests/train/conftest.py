import zlib

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from tests.train import tiny

QUICK = {"jax_disable_most_optimizations": True, "jax_persistent_cache_min_compile_time_secs": 0.0}
USUAL = {"jax_disable_most_optimizations": False, "jax_persistent_cache_min_compile_time_secs": 1.0}
"""Of programs that run for a few steps compiling is most of the time."""


@pytest.fixture
def train(corpus, monkeypatch, tmp_path_factory):
    """Trains the tiny run in this process, as a machine with one device does; `tiny.config` with these changes."""
    from pretrain import job

    device, home = jax.devices()[:1], tmp_path_factory.getbasetemp()
    monkeypatch.setattr(jax, "devices", lambda *_: device)
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    monkeypatch.setattr(job, "cache_compilations", lambda: None)

    def configure(values: dict) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        reset_cache()

    def run(folder, *, allow=(), **changes):
        config = tiny.config(corpus, **{"simulate": None, **changes})
        prepared = zlib.crc32(repr((config.data.corpus, config.objective)).encode())
        config = tiny.replace(config, data=tiny.replace(config.data, path=str(home / f"corpus_{prepared}")))
        return job.train(config, folder, allow=allow)

    configure({**QUICK, "jax_compilation_cache_dir": str(home / "xla")})
    yield run
    configure({**USUAL, "jax_compilation_cache_dir": None})
