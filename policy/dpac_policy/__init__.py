"""Policy as code: what every declaration of protection must say (docs/policy.md).

`rules` decide, from plain data; `documents` and `site` read that data from what Pulumi prints and from a backend;
`pack` is the face to `pulumi --policy-pack`, and the only module that imports Pulumi.
"""
