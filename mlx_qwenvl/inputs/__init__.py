"""What a person gives -> numbers: pictures, text and messages become patches and token ids.

Nothing here imports MLX, and importing a module here opens no file and no connection.
"""
