"""The letters of speech recognition: what stands beside those of an alphabet, and LibriSpeech's."""

from __future__ import annotations

BLANK, SEPARATOR, UNKNOWN = "<blank>", "|", "<unk>"
LIBRISPEECH = [BLANK, SEPARATOR, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
