"""The contract of a mechanism as checks, for our own and for anyone's.

With pytest:

    from subquad.testing import contract

    @pytest.mark.parametrize("check", list(contract(MyAttention)), ids=lambda check: check.__name__)
    def test_contract(check):
        check(MyAttention)

or from the shell, `subquad check my_package:MyAttention`, which prints a certificate. A whole layer has a
contract of its own, `layer_contract(MyLayer)`.
"""

from subquad.testing.certificate import Outcome, certify
from subquad.testing.layer.contract import layer_contract
from subquad.testing.mechanism.contract import Check, contract

__all__ = ["Check", "Outcome", "certify", "contract", "layer_contract"]
