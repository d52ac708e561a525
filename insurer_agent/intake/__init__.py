"""From an insurer's own files to policies with canonical identities, all on the insurer's own machine."""
