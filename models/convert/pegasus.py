"""PegasusForConditionalGeneration."""

from pretrain.models.convert.bart import Style, family

PEGASUS = family(
    Style(architecture="PegasusForConditionalGeneration", model_type="pegasus", pre_norm=True, stores_sines=True)
)
