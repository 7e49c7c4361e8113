"""The policy pack: `pulumi preview --policy-pack policy`. The rules are explained in docs/policy.md."""

from dpac_policy.pack import serve

serve()
