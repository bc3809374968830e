"""GPUs as their compiler wants them told, which has none to ask."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    """As the driver says it."""
    capability: int
    """Compute capability, the number before its point."""
    cores: int
    """Streaming multiprocessors."""
    clock: float
    """Cycles per second."""
    cache: int
    """Bytes of the second level."""
    memory: int
    """Bytes that the driver shows."""

    def target(self, memory_bandwidth: float) -> str:
        """XLA's `GpuTargetConfigProto` as text. Limits of threads, registers and shared memory are those of compute
        capability 9 and 10 (CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability")."""
        return f"""gpu_device_info {{
  name: "{self.name}"
  cuda_compute_capability {{ major: {self.capability} feature_extension: ACCELERATED_FEATURES }}
  core_count: {self.cores}
  fpus_per_core: 128
  clock_rate_ghz: {self.clock / 1e9}
  l2_cache_size: {self.cache}
  device_memory_size: {self.memory}
  memory_bandwidth: {int(memory_bandwidth)}
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: {228 * 2**10}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {227 * 2**10}
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{self.name}"
"""
