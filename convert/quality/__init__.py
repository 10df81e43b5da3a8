"""What a file costs against its reference: divergence by language, speed on this machine, and the choice by a bound.

It knows nothing of how files are written or quantized.
"""
