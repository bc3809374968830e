"""How much of the chips' arithmetic a run uses."""

# Peak dense bfloat16 FLOP/s of one JAX device, by what its `device_kind` contains; the first row that fits counts.
# NVIDIA's data sheets print Hopper's and Ampere's tensor core rates with 2:4 sparsity, which is twice the dense rate.
PEAKS = (
    ("TPU v4 lite", None),  # v4i, never sold; kept apart from v4
    ("TPU v4", 275e12),  # docs.cloud.google.com/tpu/docs/v4: 275 TFLOP/s a chip; megacore makes a chip one device
    ("TPU v5 lite", 197e12),  # docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s a chip
    ("TPU v5e", 197e12),  # the same chip's other name
    ("TPU v5", 459e12),  # v5p; docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s a chip; megacore
    ("TPU v6 lite", 918e12),  # docs.cloud.google.com/tpu/docs/v6e: 918 TFLOP/s a chip
    ("TPU v6e", 918e12),  # the same chip's other name
    ("TPU7x", 2307e12 / 2),  # docs.cloud.google.com/tpu/docs/tpu7x: 2307 TFLOP/s a chip of two devices
    ("A100", 312e12),  # NVIDIA A100 data sheet: 312 TFLOP/s dense (SXM and PCIe)
    ("H100 PCIe", 1513e12 / 2),  # NVIDIA H100 PCIe data sheet: 1513 TFLOP/s with sparsity
    ("H100 NVL", 1671e12 / 2),  # NVIDIA H100 data sheet, NVL column: 1671 TFLOP/s with sparsity
    ("H100", 1979e12 / 2),  # NVIDIA H100 data sheet, SXM column: 1979 TFLOP/s with sparsity
    ("H200 NVL", 1671e12 / 2),  # NVIDIA H200 data sheet, NVL column: 1671 TFLOP/s with sparsity
    ("H200", 1979e12 / 2),  # NVIDIA H200 data sheet, SXM column: 1979 TFLOP/s with sparsity
    ("GB200", 2500e12),  # NVIDIA GB200 NVL72 data sheet: 5000 TFLOP/s with sparsity a GPU
    ("B200", 2250e12),  # NVIDIA HGX B200 data sheet: 4500 TFLOP/s with sparsity a GPU
)


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of one JAX device in dense bfloat16, as its vendor states it; None for a CPU and for unknown chips."""
    return next((peak for name, peak in PEAKS if name.lower() in device_kind.lower()), None)


def mfu(flops_per_token: float, tokens_per_second: float, devices: int, device_kind: str) -> float | None:
    """Model FLOPs utilisation, 0 to 1 (PaLM, Chowdhery et al. 2022, appendix B); None where the peak is unknown.

    Args:
        flops_per_token: Of the model, forward and backward: causal attention once, no recomputation.
        tokens_per_second: Of the whole run.
    """
    peak = peak_flops(device_kind)
    return peak and flops_per_token * tokens_per_second / (devices * peak)
