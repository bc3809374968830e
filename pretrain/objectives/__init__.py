"""What a model learns from text. An objective is a value of `config`; its two halves are pure functions.

On the host, `transforms.transform` makes rows of text into arrays, in numpy alone; on the devices, `build.build` makes
(model, batch, key) into a loss. Nothing is imported here: `config` alone must stay light.
"""
