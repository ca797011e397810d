"""The page in the browser: what its visitors upload, ask and download. The one room that imports gradio."""
