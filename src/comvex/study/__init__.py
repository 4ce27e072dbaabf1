"""Many runs that answer one question: how few pictures suffice, and which part of ConViT it is that makes it so."""
