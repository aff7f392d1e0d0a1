"""Every built-in pruner keeps every promise on every architecture family, or says why it can't."""

import pytest

from prunebench.methods.conformance import check_pruner
from prunebench.methods.registry import PRUNERS, get_pruner
from prunebench.models.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(PRUNERS.built_in))
def test_pruner_keeps_its_promises(name, family):
    findings = check_pruner(get_pruner(name), families=(family,))
    assert findings
    assert [f for f in findings if f.status == "broken"] == []
