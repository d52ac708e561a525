"""What the alliance's admins do: make and sign manifests, and run a whole alliance on one machine."""
