"""What computes: backbone, encoders, decoding. Nothing here trains or logs."""
