"""Everything that listens: the DICOM listener (a process of its own) and the HTTP service (DICOMweb, status, admin
page).

This room takes bytes in and hands bytes out.  It decodes no pixel, opens no sealed part and imports neither `worker`,
`codec` nor `stego`: what needs them is asked of the workers by task name, through `gateway.jobs`.
"""
